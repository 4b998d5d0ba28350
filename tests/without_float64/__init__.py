"""All that runs on a device, on one that has no float64."""
