"""Walks: what three new users type from nothing to the end, and what they see.

A walk is a transcript, `NAME.txt`: lines that begin with `$ ` are commands, what follows is what they print. The test
runs the commands and compares; `python -m tests.walks.record NAME` writes the transcript anew. Read it then, as the
user would: it is the text that the project speaks.
"""
