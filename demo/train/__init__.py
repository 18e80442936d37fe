"""Training of the demo model: a small CLIP taught on openly licensed emoji art."""
