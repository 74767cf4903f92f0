"""Measures of clips: Fréchet distances, motion, appearance, diversity, caption adherence."""
