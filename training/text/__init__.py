"""Seeded text for rill: stories, chats and short explanations, made from rules and word lists.

In: a seed and a split. Out: documents. Not known here: tokens, models, files of weights.
"""
