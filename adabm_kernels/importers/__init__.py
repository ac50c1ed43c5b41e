"""Networks in files of other programs, read into a graph: ncnn and ONNX."""
