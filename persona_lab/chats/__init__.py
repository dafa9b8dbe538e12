"""What comes of talking: saved conversations, blind votes and ratings, and replies to learn from. Light; no gradio."""
