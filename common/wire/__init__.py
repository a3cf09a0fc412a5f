"""What crosses between processes: protobuf services, channels, the one codec of requests and replies."""
