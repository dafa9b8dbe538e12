"""Who may reach what of a page that others can reach: passwords, links for guests, their sessions and limits.

What is kept lies in `<home>/sharing`, beside the library and not in it: the page and the command line write it at the
same time. No gradio, no engine, no network.
"""
