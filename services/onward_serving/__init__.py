"""What every gRPC server of the suite has: health, reflection, limits, one table of errors, an orderly end."""
