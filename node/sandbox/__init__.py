"""Running what strangers wrote: a port, and its adapters on a Docker engine and on bubblewrap."""
