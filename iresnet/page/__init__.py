"""Local page of one trained model: what it computes, the widgets that show it, and the server. Needs gradio."""
