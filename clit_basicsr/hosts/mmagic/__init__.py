"""What MMagic 1.2.0 needs to be imported."""
