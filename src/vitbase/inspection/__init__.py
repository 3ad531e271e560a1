"""What a model looks at: its weights as pictures, its attention, features and gradients."""
