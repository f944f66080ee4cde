"""What every gRPC server of the suite shares."""
