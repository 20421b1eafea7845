"""Read the challenge's pictures.

images  Read image files once: content hash, size and perceptual hash, kept in images.csv
paths   Find the picture files that rows name: below the data folder, and nowhere else
"""
