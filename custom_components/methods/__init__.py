"""One folder a method, named as its bundle: what only that method needs. Methods do not import one another."""
