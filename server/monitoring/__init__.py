"""The coordinator and its runs for other programs: Prometheus, TensorBoard, MLflow. From `server.views`; no torch.

Each program's own library writes its format, and each library is an extra.
"""
