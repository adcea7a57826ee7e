# A client of web. Its sidecar listens for it on port 9090 and spreads its requests over the instances.
job "client" {
  group "client" {
    network {
      port "http" {
        to = 8080
      }
    }

    service {
      name = "client"
      port = "http"

      check {
        type     = "http"
        path     = "/healthz"
        interval = "2s"
      }

      connect {
        sidecar_service {
          proxy {
            upstreams {
              destination_name   = "web"
              local_bind_address = "0.0.0.0"
              local_bind_port    = 9090
            }
          }
        }
      }
    }

    task "client" {
      driver  = "exec"
      command = "${WHARF_EXE}"
      args    = ["demo", "serve", "-port=8080", "-name=${WHARF_ALLOC_NAME}"]
    }
  }
}
