"""What lets the series run on any machine: easy-VQA as a challenge, and a tiny base model."""
