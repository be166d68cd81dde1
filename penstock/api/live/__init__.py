"""The live view's data: `GET /live/events` (see docs/live.md)."""
