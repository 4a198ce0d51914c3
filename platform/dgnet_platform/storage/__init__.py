"""Bytes that outlive a crash, here or at a URI; settings as JSON."""
