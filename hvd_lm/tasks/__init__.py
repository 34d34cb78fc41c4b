"""What people use a language model for, beside generating text."""
