"""Publishing: a folder with a model card, and its upload to the Hugging Face Hub."""
