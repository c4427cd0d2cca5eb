"""Conversations, their messages, pages of them, and search."""
