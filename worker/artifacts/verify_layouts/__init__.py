"""Layouts that name the digests of their own objects: verified without a catalogue, and without a change."""
