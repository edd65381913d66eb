// An echo server in Go: a goroutine a connection, each with 64 KiB of its own, all on one thread at a time.
//
// Go sets TCP_NODELAY itself. Prints tcp://127.0.0.1:PORT once it accepts.
package main

import (
	"fmt"
	"log"
	"net"
	"runtime"
)

func echo(peer net.Conn) {
	defer peer.Close()
	chunk := make([]byte, 64*1024)
	for {
		count, err := peer.Read(chunk)
		if err != nil {
			return
		}
		if _, err := peer.Write(chunk[:count]); err != nil {
			return
		}
	}
}

func main() {
	runtime.GOMAXPROCS(1)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}

	fmt.Printf("tcp://%s\n", listener.Addr())
	for {
		peer, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go echo(peer)
	}
}
