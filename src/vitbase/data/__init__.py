"""What goes in: from a folder or an archive of images to batches of uint8 pixels."""
