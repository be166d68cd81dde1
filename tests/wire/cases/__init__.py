"""The tables of requests, by topic."""
