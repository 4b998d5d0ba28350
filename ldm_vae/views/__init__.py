"""Changes of a picture that have a counterpart in the latent.

view.py   What a view is, and which one a step of training takes
"""
