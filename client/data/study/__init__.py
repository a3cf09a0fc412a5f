"""What a study is: image, geometry, labels, references; values as JSON. The ground of `client.data`."""
