"""Clips, captions, codecs and latents: everything between a video file and a training batch."""
