"""Reads networks from files of other programs, ncnn and ONNX, into a graph."""
