"""What a trained codec is held against."""
