"""Sources of images (hospitals, cameras): found where none is named, and estimates that hold them out."""
