"""Server side: turn a model into a bundle. The only part of edge-cl that imports torch."""
