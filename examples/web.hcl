# Three instances of a small web server, each with its own sidecar, found by DNS as web.service.consul.
# Runs where nothing but the wharf binary is installed:
#
#   wharf job run examples/web.hcl
#   wharf job status web
#   dig @127.0.0.1 -p 8600 web.service.consul SRV

job "web" {
  group "web" {
    count = 3

    network {
      port "http" {} # a free port of the node, by the name http
    }

    service {
      name = "web"
      port = "http"

      check {
        type     = "http"
        path     = "/"
        interval = "2s"
      }

      connect {
        sidecar_service {}
      }
    }

    task "web" {
      driver  = "exec"
      command = "${WHARF_EXE}"
      args    = ["demo", "serve", "-port", "${WHARF_PORT_http}", "-name", "${WHARF_ALLOC_NAME}"]

      resources {
        cpu    = "100m"
        memory = "64MiB"
      }
    }
  }
}
