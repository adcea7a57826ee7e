# Three instances of a small web server, each with a network and a sidecar of its own.
job "web" {
  group "web" {
    count = 3

    network {
      port "http" {
        to = 8080
      }
    }

    restart {
      attempts = 5
      delay    = "250ms"
    }

    service {
      name = "web"
      port = "http"

      check {
        type     = "http"
        path     = "/healthz"
        interval = "2s"
      }

      connect {
        sidecar_service {}
      }
    }

    task "server" {
      driver  = "exec"
      command = "${WHARF_EXE}"
      args    = ["demo", "serve", "-port=8080", "-name=${WHARF_ALLOC_NAME}"]
    }
  }
}
