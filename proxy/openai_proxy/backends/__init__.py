"""Model servers that the proxy starts and supervises itself."""
