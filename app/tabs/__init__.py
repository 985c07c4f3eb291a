"""One file for each tab: its components, and what is called when. What they compute is elsewhere, without Gradio."""
