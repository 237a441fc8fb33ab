"""The local page of an index: search, playable moments, thumbnails."""
