"""Text generation behind one small interface: requests go in, finished answers come out as they complete."""
