"""Multi-scale contrastive losses, projection heads and deep supervision for any segmentation network."""

__version__ = "0.1.0"
