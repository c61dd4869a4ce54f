"""What tests of several packages share: unprivileged servers, free ports, bounded waiting."""
