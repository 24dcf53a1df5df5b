"""What the module does, apart from its panel."""
