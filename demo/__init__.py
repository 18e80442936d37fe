"""A small trained model, its pictures, and the tour that `make demo` gives."""
