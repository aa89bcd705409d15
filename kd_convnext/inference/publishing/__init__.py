"""Model cards and folders for the Hugging Face hub."""
