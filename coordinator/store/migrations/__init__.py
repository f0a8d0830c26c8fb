"""The steps that bring a store's file up to date, a module each, in the order of `coordinator.store.schema`."""
