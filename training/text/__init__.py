"""Seeded text for rill: stories, chats and short explanations, made from rules and word lists.

In: a seed and a split. Out: documents. Knows nothing about tokens, models or files of weights.
"""
