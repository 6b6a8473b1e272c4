"""The TensorFlow Serving protocol: messages, tensors ⇄ ndarray, JSON, tf.Example and signatures.

Nothing here opens a socket: servers and clients of either transport encode and decode with it.
"""
