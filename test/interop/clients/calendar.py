import json
import zmq

context = zmq.Context()
print("Client attempting to connect to server...")

socket = context.socket(zmq.REQ)
socket.connect("tcp://localhost:5555")

print("Sending a request...")
# call function 
def call(object):
    socket.send_string(json.dumps(object))
    print("REQEST :", object)
    # Message Contract -- Server Reply:
    response = socket.recv().decode()
    print("RESPONSE:", response, "\n")
    return response
