def demo() -> None:
    """Watch the main job."""
