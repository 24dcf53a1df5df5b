"""Groups of people: their template, labels that travel from atlases to them, their time points."""
