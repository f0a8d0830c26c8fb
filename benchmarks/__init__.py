"""What `make bench` measures, on this machine and now."""
